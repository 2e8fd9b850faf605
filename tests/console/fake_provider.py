"""An OpenID provider on a socket of its own, which can be told to misbehave."""

from __future__ import annotations

import base64
import hashlib
import hmac
import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from joserfc import jwt
from joserfc.jwk import RSAKey

from tests.threaded_server import serving

CLIENT, SECRET = "suffice", "hush hush/%"


@dataclass
class Provider:
    """What it knows and answers.

    claims    of the next ID token, over the usual ones; None removes a claim
    forge     returns the ID token instead, from the right claims
    """

    url: str = ""
    key: RSAKey = field(default_factory=lambda: RSAKey.generate_key(2048, {"kid": "one"}))
    published: list[RSAKey] = field(default_factory=list)
    claims: dict[str, Any] = field(default_factory=dict)
    forge: Any = None
    issuer: str | None = None  # that the configuration names; None: the right one
    is_down: bool = False
    says: dict[str, Any] = field(default_factory=dict)  # content by path, instead of the right one
    queries: dict[str, dict[str, str]] = field(default_factory=dict)  # queries of authorizations, by code
    calls: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.published = [self.key]

    def forged(self, path: str, right: tuple[int, Any]) -> tuple[int, Any]:
        return (200, self.says[path]) if path in self.says else right

    def rotate(self) -> None:
        self.key = RSAKey.generate_key(2048, {"kid": f"key {len(self.calls)}"})
        self.published = [self.key]

    def authorize(self, address: str) -> dict[str, str]:
        """As its login page does for a person who agrees: the query of the way back."""
        query = {name: values[0] for name, values in parse_qs(urlsplit(address).query).items()}
        assert query["code_challenge_method"] == "S256"
        code = f"code-{len(self.queries)}"
        self.queries[code] = query
        return {"code": code, "state": query["state"]}

    def token_for(self, form: dict[str, str]) -> tuple[int, dict[str, Any]]:
        query = self.queries.pop(form.get("code", ""), None)
        if query is None:
            return 400, {"error": "invalid_grant"}
        challenge = hashlib.sha256(form["code_verifier"].encode()).digest()
        right = base64.urlsafe_b64encode(challenge).decode().rstrip("=") == query["code_challenge"]
        if not right or form["redirect_uri"] != query["redirect_uri"]:
            return 400, {"error": "invalid_grant"}
        now_s = int(time.time())
        claims = {
            "iss": self.url,
            "aud": CLIENT,
            "sub": "4711",
            "iat": now_s,
            "exp": now_s + 300,
            "nonce": query["nonce"],
            "email": "rita@example.com",
            "groups": ["staff", "reviewers"],
            **self.claims,
        }
        claims = {name: value for name, value in claims.items() if value is not None}
        token = self.forge(claims) if self.forge is not None else self.sign(claims)
        return 200, {"access_token": "a", "token_type": "Bearer", "id_token": token}

    def sign(self, claims: dict[str, Any], key: RSAKey | None = None) -> str:
        key = key or self.key
        return jwt.encode({"alg": "RS256", "kid": key.kid}, claims, key)


def _part(content: bytes) -> str:
    return base64.urlsafe_b64encode(content).decode().rstrip("=")


def unsigned(claims: dict[str, Any], **head: str) -> str:
    head = head or {"alg": "none", "typ": "JWT"}
    return f"{_part(json.dumps(head).encode())}.{_part(json.dumps(claims).encode())}."


def signed_with_the_public_key(provider: Provider, claims: dict[str, Any]) -> str:
    """HS256 with the public key as the shared secret."""
    signed = unsigned(claims, alg="HS256", kid=str(provider.key.kid)).removesuffix(".")
    return f"{signed}.{_part(hmac.digest(provider.key.as_pem(private=False), signed.encode(), 'sha256'))}"


@contextmanager
def provider() -> Iterator[Provider]:
    made = Provider()

    class Handler(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            made.calls.append(self.path)
            if made.is_down:
                self.answer(503, {})
            elif self.path == "/.well-known/openid-configuration":
                places = {
                    "authorization_endpoint": f"{made.url}/authorize?tenant=x",
                    "token_endpoint": f"{made.url}/token",
                    "jwks_uri": f"{made.url}/keys",
                }
                self.answer(200, {"issuer": made.issuer or made.url, **places})
            elif self.path == "/keys":
                self.answer(200, {"keys": [one.as_dict(private=False) for one in made.published]})
            else:
                self.answer(404, {})

        def do_POST(self) -> None:
            made.calls.append(self.path)
            body = self.rfile.read(int(self.headers["content-length"])).decode()
            login = base64.b64decode(self.headers.get("authorization", "").removeprefix("Basic ")).decode()
            name, _, secret = login.partition(":")
            if made.is_down:
                self.answer(503, {})
            elif (unquote(name), unquote(secret)) != (CLIENT, SECRET):
                self.answer(401, {"error": "invalid_client"})
            else:
                self.answer(*made.token_for({name: values[0] for name, values in parse_qs(body).items()}))

        def answer(self, status: int, content: Any) -> None:
            status, content = made.forged(self.path, (status, content))
            body = json.dumps(content).encode()
            self.send_response(status)
            self.send_header("content-type", "application/json")
            self.send_header("content-length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with serving(Handler) as made.url:
        yield made
