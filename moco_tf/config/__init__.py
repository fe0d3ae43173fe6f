"""What the programs can be told: options by group, and recipes."""
