"""Small tools every room may use: time, processes, redaction, logging. They know nothing of the product."""
