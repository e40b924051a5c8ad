"""All decisions, and nothing else: no clock, no network, no chance, no asyncio."""
