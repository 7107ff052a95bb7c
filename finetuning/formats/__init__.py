"""Models as others write and read them, one folder for each format, and what lies at a path."""
