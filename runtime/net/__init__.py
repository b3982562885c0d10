"""Links, addresses, guards, accounting and shaping of container and machine adapters."""
