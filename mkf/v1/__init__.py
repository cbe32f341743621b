"""The API `mkf.v1`, generated from proto/ by `make proto`; do not edit."""
