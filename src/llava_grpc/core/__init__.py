"""Pure decisions: values and `now` in, values out. No asyncio, grpc, torch, clock or logging in here."""
