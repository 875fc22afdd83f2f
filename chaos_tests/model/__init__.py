"""Models that are searched whole: small worlds in which an enemy decides what happens next."""
