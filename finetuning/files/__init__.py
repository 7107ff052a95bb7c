"""Files of others, read by a schema; files of our own, which appear whole or not at all."""
