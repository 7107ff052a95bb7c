"""One optimizer step, and the Lightning shell that repeats it."""
