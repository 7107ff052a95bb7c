"""From source files to checked samples, with a finding by file and line for whatever is wrong."""
