"""What is asked for and what follows from it: settings, rules, memory, the run. Imports no torch."""
