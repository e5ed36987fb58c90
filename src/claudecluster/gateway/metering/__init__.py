"""What requests used and cost, as metrics, records and spans."""
