"""The Debian package on machines without Python, from installation to purge."""
