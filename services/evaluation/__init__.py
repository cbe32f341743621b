"""The evaluation service: two models, the same images, one comparison."""
