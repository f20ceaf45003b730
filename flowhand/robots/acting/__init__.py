"""Who acts while demonstrations are recorded: an expert, a person, a policy, or one that takes over from another."""
