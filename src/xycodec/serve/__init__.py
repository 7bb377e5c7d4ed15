"""A codec as a service: REST, streams over WebSocket, a page for people, and a client."""
