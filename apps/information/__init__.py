"""``denoscope info``: what is asked, about which images, and the answer."""
