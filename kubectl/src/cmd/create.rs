//! `create`: from files, or from flags for the kinds that people make by hand.

use super::{ChangeFlags, DryRun, ValidateFlag, key_value, with_places};
use crate::client::query;
use crate::context::Context;
use crate::error::{Error, Result};
use crate::manifest::{FileFlags, Manifest};
use crate::resource::{self, Info};
use base64::Engine;
use base64::engine::general_purpose::STANDARD as BASE64;
use serde_json::{Map, Value, json};
use std::path::Path;

/// Create a resource from a file, from stdin, or by flags.
#[derive(clap::Args, Debug)]
#[command(subcommand_precedence_over_arg = true)]
pub struct CreateArgs {
    #[command(subcommand)]
    sub: Option<Kind>,
    #[command(flatten)]
    files: FileFlags,
    #[command(flatten)]
    change: ChangeFlags,
    #[command(flatten)]
    validate: ValidateFlag,
    /// Keep the manifest on the object, so that apply can go on from it
    #[arg(long)]
    save_config: bool,
}

#[derive(clap::Subcommand, Debug)]
enum Kind {
    /// Create a namespace
    #[command(alias = "ns")]
    Namespace {
        name: String,
        #[command(flatten)]
        change: ChangeFlags,
    },
    /// Create a deployment
    #[command(alias = "deploy")]
    Deployment(DeploymentArgs),
    /// Create a config map
    #[command(alias = "cm")]
    Configmap {
        name: String,
        #[command(flatten)]
        data: DataFlags,
        #[command(flatten)]
        change: ChangeFlags,
    },
    /// Create a secret
    #[command(subcommand)]
    Secret(Secret),
    /// Create a service
    #[command(subcommand, alias = "svc")]
    Service(Service),
    /// Create a service account
    #[command(alias = "sa")]
    Serviceaccount {
        name: String,
        #[command(flatten)]
        change: ChangeFlags,
    },
}

#[derive(clap::Args, Debug)]
struct DeploymentArgs {
    name: String,
    /// The image of a container; may be repeated
    #[arg(long, required = true, value_delimiter = ',')]
    image: Vec<String>,
    /// How many pods
    #[arg(long, short = 'r', default_value_t = 1)]
    replicas: i32,
    /// A port that the container listens on
    #[arg(long)]
    port: Option<i32>,
    /// The command of the container
    #[arg(last = true)]
    command: Vec<String>,
    #[command(flatten)]
    change: ChangeFlags,
}

#[derive(clap::Args, Debug, Default)]
struct DataFlags {
    /// key=value
    #[arg(long, value_name = "KEY=VALUE")]
    from_literal: Vec<String>,
    /// A file, key=file, or a folder whose files are taken
    #[arg(long, value_name = "[KEY=]PATH")]
    from_file: Vec<String>,
    /// A file of key=value lines
    #[arg(long, value_name = "PATH")]
    from_env_file: Vec<String>,
}

#[derive(clap::Subcommand, Debug)]
enum Secret {
    /// From files, folders or literals
    Generic {
        name: String,
        #[command(flatten)]
        data: DataFlags,
        /// The secret's type; the server's default is Opaque
        #[arg(long = "type", default_value = "", hide_default_value = true)]
        kind: String,
        #[command(flatten)]
        change: ChangeFlags,
    },
    /// Credentials of a registry
    DockerRegistry {
        name: String,
        /// The registry
        #[arg(long, default_value = "https://index.docker.io/v1/")]
        docker_server: String,
        /// The user
        #[arg(long, required = true)]
        docker_username: String,
        /// The password
        #[arg(long, required = true)]
        docker_password: String,
        /// The user's mail address
        #[arg(long, default_value = "")]
        docker_email: String,
        #[command(flatten)]
        change: ChangeFlags,
    },
    /// A key pair
    Tls {
        name: String,
        /// The certificate's file, PEM
        #[arg(long, required = true)]
        cert: String,
        /// The key's file, PEM
        #[arg(long, required = true)]
        key: String,
        #[command(flatten)]
        change: ChangeFlags,
    },
}

#[derive(clap::Subcommand, Debug)]
enum Service {
    /// With an address in the cluster
    Clusterip {
        #[command(flatten)]
        service: ServiceArgs,
        /// The address, or None for a headless service
        #[arg(long)]
        clusterip: Option<String>,
    },
    /// With a port on each node
    Nodeport {
        #[command(flatten)]
        service: ServiceArgs,
        /// The port on the nodes
        #[arg(long)]
        node_port: Option<i32>,
    },
}

#[derive(clap::Args, Debug)]
struct ServiceArgs {
    name: String,
    /// port or port:targetPort; may be repeated
    #[arg(long, value_delimiter = ',')]
    tcp: Vec<String>,
    #[command(flatten)]
    change: ChangeFlags,
}

pub async fn run(ctx: &Context, args: &CreateArgs) -> Result<()> {
    match &args.sub {
        None => from_files(ctx, args).await,
        Some(kind) => by_flags(ctx, kind).await,
    }
}

async fn from_files(ctx: &Context, args: &CreateArgs) -> Result<()> {
    if args.files.filename.is_empty() {
        return Err(Error::msg("must specify one of -f and -k"));
    }
    let mut errors = Vec::new();
    for info in resource::from_files_unnamed(ctx, &args.files).await? {
        match one(ctx, args, &info).await {
            Ok(()) => {}
            Err(e @ Error::Unreachable(_)) => return Err(e),
            Err(e) => errors.push(with_places(e.in_source("creating", info.source()), &info)),
        }
    }
    Error::collect(errors)
}

async fn one(ctx: &Context, args: &CreateArgs, info: &Info) -> Result<()> {
    let object =
        if args.save_config { super::apply::modified(&info.object) } else { info.object.clone() };
    let mut pairs = args.change.query("kubectl-create");
    pairs.push(args.validate.pair()?);
    send(ctx, &args.change, info.clone(), object, &pairs).await
}

async fn send(
    ctx: &Context,
    change: &ChangeFlags,
    mut info: Info,
    object: Value,
    pairs: &[(&str, String)],
) -> Result<()> {
    let mut made = object;
    if change.dry_run != DryRun::Client {
        let path = format!("{}{}", info.collection(), query(pairs));
        let answer = ctx.http().await?.post(&path, &made).await;
        made = answer.map_err(|e| resource::no_such_type(e, &info.resource))?;
    }
    // A generated name is known only now.
    info.name = rkube_api::meta::metadata_str(&made, "name").to_owned();
    change.report(ctx, &info, &made, "created")
}

/// What is only shown names a namespace only if the user did.
pub fn without_default_namespace(ctx: &Context, object: &mut Value) {
    if ctx.flags.namespace.is_none()
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.remove("namespace");
    }
}

/// Creates an object that was made from flags; `what` is how an error calls it.
pub async fn make(ctx: &Context, change: &ChangeFlags, what: &str, object: Value) -> Result<()> {
    change.output.format(true)?;
    let mut info = resource::from_manifest(ctx, Manifest::made(object)).await?;
    let mut object = info.object.take();
    if change.dry_run == DryRun::Client {
        without_default_namespace(ctx, &mut object);
    }
    send(ctx, change, info, object, &change.query("kubectl-create")).await.map_err(|e| match e {
        Error::Status(s) if !what.is_empty() => {
            Error::msg(format!("failed to create {what}: {}", s.message))
        }
        other => other,
    })
}

async fn by_flags(ctx: &Context, kind: &Kind) -> Result<()> {
    match kind {
        Kind::Namespace { name, change } => {
            let object =
                json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name}});
            make(ctx, change, "", object).await
        }
        Kind::Deployment(args) => make(ctx, &args.change, "deployment", deployment(args)?).await,
        Kind::Configmap { name, data, change } => {
            let object = config_map(name, &data.read()?)?;
            make(ctx, change, "configmap", object).await
        }
        Kind::Secret(secret) => self::secret(ctx, secret).await,
        Kind::Service(service) => self::service(ctx, service).await,
        Kind::Serviceaccount { name, change } => {
            let object =
                json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"name": name}});
            make(ctx, change, "serviceaccount", object).await
        }
    }
}

fn deployment(args: &DeploymentArgs) -> Result<Value> {
    if args.image.len() > 1 && !args.command.is_empty() {
        return Err(Error::msg("cannot specify multiple --image options and command"));
    }
    let mut containers: Vec<Value> = args
        .image
        .iter()
        .map(|image| json!({"name": container_name(image), "image": image, "resources": {}}))
        .collect();
    if !args.command.is_empty() {
        containers[0]["command"] = json!(args.command);
    }
    if let Some(port) = args.port {
        containers[0]["ports"] = json!([{"containerPort": port}]);
    }
    let labels = json!({"app": args.name});
    Ok(json!({
        "apiVersion": "apps/v1", "kind": "Deployment",
        "metadata": {"name": args.name, "labels": labels},
        "spec": {
            "replicas": args.replicas, "selector": {"matchLabels": labels}, "strategy": {},
            "template": {"metadata": {"labels": labels}, "spec": {"containers": containers}},
        },
        "status": {},
    }))
}

/// `registry/path/nginx:1` is called `nginx`.
fn container_name(image: &str) -> String {
    let last = image.rsplit('/').next().unwrap_or(image);
    let bare = last.split(['@', ':']).next().unwrap_or(last);
    bare.to_lowercase().replace(['_', '.'], "-")
}

impl DataFlags {
    /// Keys and contents, in the order of the flags; a key twice is refused.
    fn read(&self) -> Result<Vec<(String, Vec<u8>)>> {
        let other = !self.from_file.is_empty() || !self.from_literal.is_empty();
        if other && !self.from_env_file.is_empty() {
            return Err(Error::msg(
                "from-env-file cannot be combined with from-file or from-literal",
            ));
        }
        let mut data: Vec<(String, Vec<u8>)> = Vec::new();
        for literal in &self.from_literal {
            let (key, value) = key_value(literal).ok_or_else(|| {
                Error::msg(format!("invalid literal source {literal}, expected key=value"))
            })?;
            data.push((key.into(), value.into()));
        }
        for source in &self.from_file {
            data.extend(files(source)?);
        }
        for path in &self.from_env_file {
            data.extend(env_file(path)?);
        }
        for (i, (key, _)) in data.iter().enumerate() {
            if data[..i].iter().any(|(k, _)| k == key) {
                return Err(Error::msg(format!(
                    "cannot add key {key:?}, another key by that name already exists in Data"
                )));
            }
        }
        Ok(data)
    }
}

fn read_bytes(path: &Path) -> Result<Vec<u8>> {
    std::fs::read(path).map_err(|e| {
        let why = match e.kind() {
            std::io::ErrorKind::NotFound => "no such file or directory".to_owned(),
            _ => e.to_string(),
        };
        Error::msg(format!("error reading {}: {why}", path.display()))
    })
}

fn files(source: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let (key, path) = match source.split_once('=') {
        Some(("", _)) => {
            return Err(Error::msg(format!("key name for file path {} missing", &source[1..])));
        }
        Some((key, path)) => (Some(key), Path::new(path)),
        None => (None, Path::new(source)),
    };
    let name =
        |p: &Path| p.file_name().map(|n| n.to_string_lossy().into_owned()).unwrap_or_default();
    if path.is_dir() {
        if key.is_some() {
            return Err(Error::msg("cannot give a key name for a directory path"));
        }
        let mut entries: Vec<_> =
            std::fs::read_dir(path)?.filter_map(|e| Some(e.ok()?.path())).collect();
        entries.retain(|p| p.is_file());
        entries.sort();
        return entries.iter().map(|p| Ok((name(p), read_bytes(p)?))).collect();
    }
    Ok(vec![(key.map_or_else(|| name(path), str::to_owned), read_bytes(path)?)])
}

fn env_file(path: &str) -> Result<Vec<(String, Vec<u8>)>> {
    let text = String::from_utf8(read_bytes(Path::new(path))?)
        .map_err(|_| Error::msg(format!("env file {path} contains invalid utf8 bytes")))?;
    let lines = text.lines().map(str::trim_start).filter(|l| !l.is_empty() && !l.starts_with('#'));
    Ok(lines
        .map(|line| match line.split_once('=') {
            Some((key, value)) => (key.to_owned(), value.as_bytes().to_vec()),
            None => (line.to_owned(), std::env::var(line).unwrap_or_default().into_bytes()),
        })
        .collect())
}

fn config_map(name: &str, data: &[(String, Vec<u8>)]) -> Result<Value> {
    let (mut texts, mut bytes) = (Map::new(), Map::new());
    for (key, content) in data {
        match std::str::from_utf8(content) {
            Ok(text) => texts.insert(key.clone(), text.into()),
            Err(_) => bytes.insert(key.clone(), BASE64.encode(content).into()),
        };
    }
    let mut object = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}});
    for (field, map) in [("data", texts), ("binaryData", bytes)] {
        if !map.is_empty() {
            object[field] = Value::Object(map);
        }
    }
    Ok(object)
}

fn secret_object(name: &str, kind: &str, data: &[(String, Vec<u8>)]) -> Value {
    let encoded: Map<String, Value> =
        data.iter().map(|(k, v)| (k.clone(), BASE64.encode(v).into())).collect();
    let mut object = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": name}});
    if !kind.is_empty() {
        object["type"] = kind.into();
    }
    if !encoded.is_empty() {
        object["data"] = Value::Object(encoded);
    }
    object
}

async fn secret(ctx: &Context, secret: &Secret) -> Result<()> {
    match secret {
        Secret::Generic { name, data, kind, change } => {
            make(ctx, change, "secret", secret_object(name, kind, &data.read()?)).await
        }
        Secret::DockerRegistry {
            name,
            docker_server,
            docker_username,
            docker_password,
            docker_email,
            change,
        } => {
            // In the order that kubectl writes, so that both make the same bytes.
            let auth = BASE64.encode(format!("{docker_username}:{docker_password}"));
            let fields = [
                ("username", docker_username),
                ("password", docker_password),
                ("email", docker_email),
                ("auth", &auth),
            ];
            let fields: Vec<String> = fields
                .iter()
                .filter(|(_, value)| !value.is_empty())
                .map(|(name, value)| format!("{:?}:{}", name, json!(value)))
                .collect();
            let config =
                format!("{{\"auths\":{{{}:{{{}}}}}}}", json!(docker_server), fields.join(","));
            let data = [(".dockerconfigjson".to_owned(), config.into_bytes())];
            let object = secret_object(name, "kubernetes.io/dockerconfigjson", &data);
            make(ctx, change, "secret", object).await
        }
        Secret::Tls { name, cert, key, change } => {
            let data = [
                ("tls.crt".to_owned(), read_bytes(Path::new(cert))?),
                ("tls.key".to_owned(), read_bytes(Path::new(key))?),
            ];
            make(ctx, change, "secret", secret_object(name, "kubernetes.io/tls", &data)).await
        }
    }
}

async fn service(ctx: &Context, service: &Service) -> Result<()> {
    let (args, kind) = match service {
        Service::Clusterip { service, .. } => (service, "ClusterIP"),
        Service::Nodeport { service, .. } => (service, "NodePort"),
    };
    let headless =
        matches!(service, Service::Clusterip { clusterip: Some(ip), .. } if ip == "None");
    if args.tcp.is_empty() && !headless {
        return Err(Error::msg("at least one tcp port specifier must be provided"));
    }
    let mut ports = args.tcp.iter().map(|p| service_port(p)).collect::<Result<Vec<_>>>()?;
    if let (Service::Nodeport { node_port: Some(n), .. }, Some(first)) =
        (service, ports.first_mut())
    {
        first["nodePort"] = json!(n);
    }
    let mut spec = json!({"type": kind, "selector": {"app": args.name}, "ports": ports});
    if let Service::Clusterip { clusterip: Some(ip), .. } = service {
        spec["clusterIP"] = ip.clone().into();
    }
    let object = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {"name": args.name, "labels": {"app": args.name}}, "spec": spec,
        "status": {"loadBalancer": {}},
    });
    make(ctx, &args.change, "service", object).await
}

fn service_port(text: &str) -> Result<Value> {
    let (port, target) = text.split_once(':').unwrap_or((text, text));
    let number: i32 = port
        .parse()
        .map_err(|_| Error::msg(format!("invalid port {port:?}: a number is expected")))?;
    let target = target.parse::<i32>().map_or_else(|_| json!(target), |n| json!(n));
    Ok(
        json!({"name": text.replace(':', "-"), "port": number, "protocol": "TCP", "targetPort": target}),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn container_names_come_from_images() {
        for (image, name) in
            [("nginx", "nginx"), ("r.io:5000/a/web_x:1.2", "web-x"), ("b@sha256:00", "b")]
        {
            assert_eq!(container_name(image), name);
        }
    }

    #[test]
    fn data_from_flags() {
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("app.conf");
        std::fs::write(&file, "x=1\n# no\n").unwrap();
        let flags = DataFlags {
            from_literal: vec!["a=b=c".into()],
            from_file: vec![file.display().to_string(), format!("k={}", file.display())],
            from_env_file: vec![],
        };
        let keys: Vec<String> = flags.read().unwrap().into_iter().map(|(k, _)| k).collect();
        assert_eq!(keys, ["a", "app.conf", "k"]);
        let env =
            DataFlags { from_env_file: vec![file.display().to_string()], ..Default::default() };
        assert_eq!(env.read().unwrap(), [("x".to_owned(), b"1".to_vec())]);
        let twice =
            DataFlags { from_literal: vec!["a=1".into(), "a=2".into()], ..Default::default() };
        assert!(twice.read().unwrap_err().to_string().contains("another key by that name"));
    }
}
