"""Who answers a request, and what happens when they do not."""
