"""Shipped doubles: scripted model servers, misbehaving parts, contract suites."""
