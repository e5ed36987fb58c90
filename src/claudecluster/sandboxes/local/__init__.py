"""What the back ends on this machine share: the launcher, what guests see, limits, records."""
