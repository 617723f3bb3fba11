"""What the files under configs/ share: the recipes they vary, the words they understand, and the table rows they reproduce."""
