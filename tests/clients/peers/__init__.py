"""Other people's clients, in their own environments, asked the same direct and through the gateway: `make clients`."""
