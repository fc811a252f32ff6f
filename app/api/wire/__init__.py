"""What goes over the wire, as Pydantic models; nothing behind the handlers knows them."""
