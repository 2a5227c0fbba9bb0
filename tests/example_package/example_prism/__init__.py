"""A method and a cohort for medprism, registered by entry points."""
