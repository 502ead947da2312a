"""Games: adversarial losses of several players."""
