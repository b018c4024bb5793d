"""vla_prune: token pruning that makes vision-language-action policies fast enough to control."""
