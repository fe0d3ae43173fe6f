"""What features are worth: extraction, nearest neighbours, linear probe."""
