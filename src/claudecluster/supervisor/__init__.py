"""Pure: in which order an attempt is judged, and what is decided."""
