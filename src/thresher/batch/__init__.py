"""Many runs of the pipeline from one plan: expanded to units, each done once, tried again when it dies."""
