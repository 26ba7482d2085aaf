"""Notifications: events of runs and searches, sent to a webhook or a command of the user's."""
