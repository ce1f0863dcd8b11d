"""What the operating system gives, and does without where it has less."""
