"""How the bundled demo model is made: its shell, its data and its stages of training."""
