"""What has moved since a model began to serve, and which study a label would teach it most about."""
