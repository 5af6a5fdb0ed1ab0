"""Texts as their users have them: what is done with them before they are spoken."""
