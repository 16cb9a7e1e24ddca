"""ACE-Step 1.5: its components in MLX, their configs, and where their weights come from."""
