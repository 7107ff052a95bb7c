"""What people see of their data: terminal, page, preview; and its conversion."""
