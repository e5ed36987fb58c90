"""HTTP/1.1 as the gateway speaks it to its clients: small, strict, bounded."""
