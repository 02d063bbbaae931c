"""Images served and reopened from inside sandboxes, out of passed descriptors."""
