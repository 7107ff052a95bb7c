"""What every process needs: its lifetime, network, status, failures, secrets, files that appear whole or not at all."""
