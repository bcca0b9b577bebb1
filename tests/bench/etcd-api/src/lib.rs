//! The part of etcd's v3 API that the benches speak: to etcd, and to the replicated store beside
//! it. Nothing is written by hand here.

#![allow(clippy::all, clippy::pedantic)]
tonic::include_proto!("etcdserverpb");
