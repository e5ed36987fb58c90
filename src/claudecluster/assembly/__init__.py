"""Settings, plug-in lookup and wiring: the only room that names concrete classes."""
