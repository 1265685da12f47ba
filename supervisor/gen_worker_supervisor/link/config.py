"""Where an orchestrator is, and how a worker shows itself there."""

import msgspec

from gen_worker.settings import Secret, Settings
from gen_worker_supervisor.link.target import AddressError, Target, parse_target


class LinkConfig(msgspec.Struct, frozen=True, kw_only=True):
    """Where the orchestrator is, and how the worker shows itself there."""

    targets: tuple[str, ...]
    """Addresses, dialed in turn; at least one."""

    use_tls: bool = False
    """Whether addresses without a scheme are spoken to over TLS whatever their port is."""

    ca_bundle: bytes | None = None
    """Certificates (PEM) that the orchestrator's must come from; None: those that gRPC trusts."""

    token: Secret = Secret("")
    """What the worker shows; none: it shows nothing."""

    disconnected_timeout_s: float = 600.0
    """Seconds without an orchestrator after which the link is fatal; 0: never."""

    @classmethod
    def of(cls, settings: Settings) -> "LinkConfig":
        """Return what settings say; raise `AddressError` where they name no place or no certificates."""
        config = cls(
            targets=settings.orchestrators,
            use_tls=settings.use_tls,
            ca_bundle=_ca_bundle(settings.grpc_ca_bundle),
            token=settings.worker_jwt,
            disconnected_timeout_s=settings.worker_disconnected_timeout_s,
        )
        config.places()
        return config

    def places(self) -> tuple[Target, ...]:
        """Return the places to dial; raise `AddressError` where there is none, or one is no address."""
        if not self.targets:
            hint = "set `ORCHESTRATOR_PUBLIC_ADDR`, as in `ORCHESTRATOR_PUBLIC_ADDR=orchestrator.example:443`"
            raise AddressError("no address of an orchestrator is set", hint)
        return tuple(parse_target(each, bare="tls" if self.use_tls else "by port") for each in self.targets)


def _ca_bundle(path: str) -> bytes | None:
    """Return the certificates of a PEM file, None where no file is set; raise `AddressError` where it has none."""
    if not path:
        return None
    import ssl

    hint = "set `GRPC_CA_BUNDLE` to a PEM file with the certificates of the orchestrator's authorities"
    try:
        with open(path, "rb") as file:
            bundle = file.read()
        ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT).load_verify_locations(cadata=bundle.decode("ascii"))
    except ssl.SSLError:
        raise AddressError(f"no certificates in `{path}`", hint) from None
    except OSError as error:
        raise AddressError(f"cannot read the certificates in `{path}`: {error.strerror}", hint) from None
    except ValueError:
        raise AddressError(f"no certificates in `{path}`", hint) from None
    return bundle
