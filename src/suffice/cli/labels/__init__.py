"""Commands that hear from people, and forget what they said."""
