"""What is true of one model only: a folder a family."""
