"""What this machine has, and how its libraries are told to use it."""
