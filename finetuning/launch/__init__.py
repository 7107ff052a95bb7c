"""From a checked RunConfig to running processes: everything that happens before and around training."""
