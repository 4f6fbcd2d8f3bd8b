"""The places: deployments, work pools, schedules and triggers."""
