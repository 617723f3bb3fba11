"""Code shared by the files under configs/: recipes, and the parsing of their arguments."""
