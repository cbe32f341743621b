"""ClassificationService and its command-line client."""
