"""What a run writes for people: console, logs, pictures, pages."""
