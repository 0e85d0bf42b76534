"""The migrations, oldest first; the name of each begins with its number."""
